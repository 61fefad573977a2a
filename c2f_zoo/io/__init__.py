"""Files that leave or enter the library: weights (safetensors), the Hugging Face Hub, model cards."""
