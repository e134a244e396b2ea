"""Leave out the rows of the vocabulary that a user's languages never use; what is kept stays exact."""
