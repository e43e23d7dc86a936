// y = weight * x / sqrt(mean(x²) + epsilon) over rows of WIDTH: one workgroup a row, one thread a column.
const WIDTH = 64u;

@group(0) @binding(0) var<storage, read> x : array<f32>;
@group(0) @binding(1) var<storage, read> weight : array<f32>;
@group(0) @binding(2) var<storage, read_write> y : array<f32>;

var<workgroup> squares : array<f32, WIDTH>;

@compute @workgroup_size(WIDTH)
fn rms_norm(@builtin(workgroup_id) row : vec3<u32>, @builtin(local_invocation_id) column : vec3<u32>) {
  let k = column.x;
  let value = x[row.x * WIDTH + k];
  squares[k] = value * value;
  workgroupBarrier();
  for (var step = WIDTH / 2u; step > 0u; step /= 2u) {
    if (k < step) { squares[k] += squares[k + step]; }
    workgroupBarrier();
  }
  y[row.x * WIDTH + k] = weight[k] * value * inverseSqrt(squares[0] / f32(WIDTH) + 1e-6);
}
