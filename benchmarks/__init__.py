"""What a user could run instead, on the same work: engines in processes of their own, figures as JSON."""
