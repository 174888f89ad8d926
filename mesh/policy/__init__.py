"""Access policy: model, parser, resolver. Pure: values in, values out."""
