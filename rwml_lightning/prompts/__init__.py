"""What the model reads, as token ids, and how chat templates make them."""
