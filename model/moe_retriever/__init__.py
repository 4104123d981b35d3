"""MoE-Retriever and the methods it is compared with, trained from sealed feature stores alone."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # as a library, print nothing unless asked to
