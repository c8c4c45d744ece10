"""The large model: weights, encoder, prompts in, masks out."""
