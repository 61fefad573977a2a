"""Image files: their formats, how they are read, and their way to a network's input without PyTorch."""
