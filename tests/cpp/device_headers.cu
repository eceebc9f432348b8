// Compiles the mathematics for the device; nothing runs. With warnings as errors it finds whatever
// only the host may call.

#include "../../csrc/core/gradient.h"
#include "../../csrc/core/objective.h"
#include "../../csrc/core/online.h"

using namespace bgkd;

__global__ void statistics(const float* z, const float* t, float* partial, float* gradient,
                           StatsParams params, ObjectiveParams objective) {
  LaneStats<float, kAllFeatures> lane;
  const Block<float, 2> z_block{{z[0], z[1]}}, t_block{{t[0], t[1]}};
  update(lane, z_block, t_block, 0.f, params.inv_temperature, params.power_exponent);
  settle(lane, lane.student_max, lane.teacher_max, params.inv_temperature, params.power_exponent);
  TokenStats part = neutral_stats();
  load_stats(part, partial, gridDim.x, blockIdx.x, params.features);
  part[kStudentMax] = lane.student_max;
  part[kForward] = lane.forward;
  const TokenStats global = finalize(merge(part, neutral_stats(), params), params);
  store_stats(global, partial, gridDim.x, blockIdx.x, params.features);
  TokenStats upstream;
  store_loss(evaluate(objective, global, upstream), partial, gridDim.x, blockIdx.x);
  const RowGradient row = row_gradient(global, upstream, params);
  gradient[0] = element_gradient<GradientKind::kSoftened>(row, z[0], t[0]);
}
