"""Rewards that run a program: a calculator, unit tests, a grammar, a function of the user's own."""
