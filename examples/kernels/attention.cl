// Attention over a cache of LENGTH positions: one workgroup for a query and a head, one thread for each of SIZE numbers.
// GROUP heads share keys and values. OpenCL has no bool in buffers: the mask comes as int.
#define LENGTH 32
#define HEADS 4
#define GROUP 2
#define SIZE 16
#define SCALE 0.25f

__kernel void attention(__global const float* keys, __global const float* values, __global const float* queries,
                        __global const int* mask, __global float* y) {
  const int row = get_group_id(0), head = get_group_id(1), k = get_local_id(0);
  const int shared = head / GROUP * LENGTH * SIZE;
  __global const float* query = queries + (head * get_num_groups(0) + row) * SIZE;
  float scores[LENGTH];
  float most = -INFINITY;
  for (int p = 0; p < LENGTH; ++p) {
    float dot = 0.0f;
    for (int i = 0; i < SIZE; ++i) dot += query[i] * keys[shared + p * SIZE + i];
    scores[p] = mask[row * LENGTH + p] ? dot * SCALE : -INFINITY;
    most = fmax(most, scores[p]);
  }
  float sum = 0.0f, mixed = 0.0f;
  for (int p = 0; p < LENGTH; ++p) {
    const float share = exp(scores[p] - most);
    sum += share;
    mixed += share * values[shared + p * SIZE + k];
  }
  y[(row * HEADS + head) * SIZE + k] = mixed / sum;
}
