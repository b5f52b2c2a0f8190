"""What lies behind a robust accuracy: margins, Jacobians, surfaces, curves, calibration."""
