"""One machine as a partner: the node agent, and the roads that lead to it."""
