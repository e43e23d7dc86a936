"""What a diagnosis is made of: runs of one operator with one thing changed, and what each of them says."""
