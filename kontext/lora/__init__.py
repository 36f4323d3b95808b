"""LoRA: files of low-rank additions, read in the forms that people have, and laid round the transformer's layers."""
