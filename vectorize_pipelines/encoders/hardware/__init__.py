"""Hardware: the devices that encoders compute on, the CPU, and free memory."""
