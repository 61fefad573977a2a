"""Input and output: safetensors, the Hugging Face Hub, model cards, CSV files."""
