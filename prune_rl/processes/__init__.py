"""Several processes, usually on several hosts, that train one run together: what they tell each other."""
