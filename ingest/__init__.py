"""Events come in: the publisher, the replay of files, and the generator of card transactions."""
