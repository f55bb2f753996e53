"""From a function's jaxpr to neuron groups, and to the same function on smaller arrays. Knows pytrees and jaxprs."""
