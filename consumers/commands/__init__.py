"""What the commands of `python -m consumers` put together: settings in, parts joined, exit status out."""
