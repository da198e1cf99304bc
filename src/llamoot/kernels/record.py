"""The 8-bit form of activations, which all matrices of quantised weights multiply.

One record of 64 bytes, a cache line, for each 32 columns of a row: 32 signed bytes, then these
words at these places. The sums let offsets and minima of weights leave the inner loop: a weight
q - 8 is multiplied as q, and 8 times the sum of the activations is taken off at the end.
"""

COLUMNS = 32
RECORD = 64
SCALE = 32  # float: a column's value is its byte times this
SUM = 36  # float: scale times the sum of the 32 bytes
LESS = 40  # float: minus the sum of the 32 bytes
LESS_LOW, LESS_HIGH = 44, 48  # float: the same for the first and the last 16 bytes
SUM_LOW, SUM_HIGH = 52, 56  # float: scale times the sums of the first and the last 16 bytes
