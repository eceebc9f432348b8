"""Teachers: where the teacher's last hidden states and output weight come from."""
