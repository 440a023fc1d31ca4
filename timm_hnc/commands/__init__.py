"""The command lines: the only room that knows argparse."""
