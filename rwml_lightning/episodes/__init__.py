"""Episodes: the environment loop, who acts in it, and the games that are played."""
