"""A recipe becomes a plan of jobs; jobs run; their results become the printed item again."""
