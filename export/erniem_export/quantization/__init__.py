"""int8 products with fixed scales: what they are, and how they are found on calibration text."""
