"""Training: run configurations, the engines that join a learner to an environment, the loop, and the whole command."""
