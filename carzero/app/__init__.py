"""A web page on this machine that scores one radiograph at a time (``carzero app``, extra ``[app]``).

Reading, scoring and files are plain functions; `page` and `server` alone import gradio.
"""
