// Attention over a cache of LENGTH positions: one workgroup for a query and a head, one thread for each of SIZE numbers.
// GROUP heads share keys and values. WGSL has no bool in buffers: the mask comes as i32.
const LENGTH = 32u;
const HEADS = 4u;
const GROUP = 2u;
const SIZE = 16u;
const SCALE = 0.25;

@group(0) @binding(0) var<storage, read> keys : array<f32>;
@group(0) @binding(1) var<storage, read> values : array<f32>;
@group(0) @binding(2) var<storage, read> queries : array<f32>;
@group(0) @binding(3) var<storage, read> mask : array<i32>;
@group(0) @binding(4) var<storage, read_write> y : array<f32>;

@compute @workgroup_size(SIZE)
fn attention(
  @builtin(workgroup_id) place : vec3<u32>, @builtin(num_workgroups) many : vec3<u32>,
  @builtin(local_invocation_id) column : vec3<u32>
) {
  let row = place.x;
  let head = place.y;
  let shared_from = head / GROUP * LENGTH * SIZE;
  let query = (head * many.x + row) * SIZE;
  var scores : array<f32, LENGTH>;
  var most = -3.4e38;
  for (var p = 0u; p < LENGTH; p++) {
    var dot = 0.0;
    for (var i = 0u; i < SIZE; i++) { dot += queries[query + i] * keys[shared_from + p * SIZE + i]; }
    scores[p] = select(-3.4e38, dot * SCALE, mask[row * LENGTH + p] != 0);
    most = max(most, scores[p]);
  }
  var sum = 0.0;
  var mixed = 0.0;
  for (var p = 0u; p < LENGTH; p++) {
    let share = exp(scores[p] - most);
    sum += share;
    mixed += share * values[shared_from + p * SIZE + column.x];
  }
  y[(row * HEADS + head) * SIZE + column.x] = mixed / sum;
}
