"""Who draws: a decoder turns image features and a `Prompt` into mask logits. One file a kind."""
