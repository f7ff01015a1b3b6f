"""What happens at a start: judging, folding, recovering; and looking without touching."""
