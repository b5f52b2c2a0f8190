"""How a prediction and its input gradient are computed fast. Everything else takes it as `Predict`."""
