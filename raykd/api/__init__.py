"""The public interface in Python: what `import raykd` offers, and the command line calls."""
