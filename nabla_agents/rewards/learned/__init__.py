"""Rewards that run a model: implicit, process and outcome reward models, read as their formats declare."""
