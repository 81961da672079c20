"""What a pretraining method reads of an example: one file a kind of batch. NumPy and Grain only."""
