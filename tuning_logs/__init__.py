"""Which tiles won: one folder a device, JSON lines. Data only."""
