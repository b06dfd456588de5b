"""Text and image encoders: a frozen base, LoRA adapters in its last blocks, and their fusion."""
