"""int8 matmuls with static activation scales, calibrated on text."""
