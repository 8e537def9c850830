"""What can be chosen (`search_space`) and what was chosen (`architecture`)."""
