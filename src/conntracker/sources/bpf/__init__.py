"""BPF programs of ours: their source and object, how they are loaded, and what they tell."""
