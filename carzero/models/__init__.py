"""The CARZero model: encoders, decoder, checkpoints."""
