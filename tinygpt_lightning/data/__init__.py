"""What is learnt: pairs, the texts that a template makes of them, their files and batches."""
