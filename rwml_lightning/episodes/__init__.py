"""Episodes: the environment loop, the actors in it, and the games to play."""
