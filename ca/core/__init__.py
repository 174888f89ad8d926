"""Pure core of the authority: values in, values out, time is an argument."""
