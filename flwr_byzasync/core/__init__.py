"""The server as a state machine without I/O: no Flower, no clock, no global randomness."""
