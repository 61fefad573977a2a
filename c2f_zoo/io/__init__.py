"""Input and output: safetensors weights, the Hugging Face Hub, model cards, CSV files."""
