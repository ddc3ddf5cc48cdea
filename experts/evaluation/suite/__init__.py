"""The methods as they are put side by side: with which settings each is run, and the row of figures of its runs."""
