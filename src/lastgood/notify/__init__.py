"""The voice: says to the team what happened, in the words that it is given. Its failure never stops a rollback."""
