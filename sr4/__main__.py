"""python -m sr4 VERB."""

from sr4 import cli

if __name__ == '__main__':
  cli.main()
