// The contract between the operators and the executors: plain functions on raw pointers. No torch
// types, no allocation, no threads of their own. Row strides are in elements. `begin` and `end` are
// token ranges, so that the caller chooses the parallelism.
#pragma once

#include <cstdint>

#include "core/merge.h"

namespace bgkd {

enum class DType { kFloat32, kBFloat16, kFloat16 };

// body(T{}) for a dtype that is known at run time; BFloat16 and Half are the executor's types. For
// the host.
template <class BFloat16, class Half, class Body>
inline __attribute__((always_inline)) auto with_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Half{});
    case DType::kFloat32:
      break;
  }
  return body(float{});
}

// Two shards of logits over the same token ids: [num_tokens, >= num_columns], unit stride along the
// columns.
struct LogitsShard {
  DType dtype;
  const void* student;
  int64_t student_stride;
  const void* teacher;  // null without kTeacher
  int64_t teacher_stride;
  int64_t num_columns;  // columns that hold real tokens; those after them are padding and are never
                        // read
  int64_t vocab_start;  // token id of column 0
  int64_t vocab_size;   // of all shards together
};

struct TokenLabels {
  const int64_t* ids;  // [num_tokens] token ids, or null: no labels, every token counts
  int64_t ignore_index;

  // A token without a label to learn from: its logits are not read.
  BGKD_INLINE bool skipped(int64_t token) const {
    return ids != nullptr && ids[token] == ignore_index;
  }
};

struct StatsArgs {
  LogitsShard logits;
  TokenLabels labels;
  StatsParams params;
  int64_t num_tokens;
  float* partial;  // out: [rows, num_tokens]
};

struct MergeArgs {
  const float* partial;  // [num_shards, rows, num_tokens], in rank order
  int64_t num_shards;
  TokenLabels labels;
  StatsParams params;
  int64_t num_tokens;
  float* global;  // out: [rows, num_tokens]
};

struct GradientArgs {
  LogitsShard logits;
  TokenLabels labels;
  StatsParams params;
  int64_t num_tokens;
  const float* global;    // [rows, num_tokens]
  const float* upstream;  // [rows, num_tokens]: d loss / d global
  void* grad;  // out: d loss / d student logits, of their dtype; may be the logits themselves
  int64_t grad_stride;
  int64_t grad_columns;  // >= num_columns; padding gets 0
};

// One token range of each phase. Torch-free and the same on every machine:
void merge_tokens(const MergeArgs& args, int64_t begin, int64_t end);

// ... and once per instruction set, each in a namespace of its own:
#if defined(BGKD_X86_KERNELS)
#define BGKD_FOR_EACH_CAPABILITY(declare) declare(DEFAULT) declare(AVX2) declare(AVX512)
#else
#define BGKD_FOR_EACH_CAPABILITY(declare) declare(DEFAULT)
#endif
#define BGKD_DECLARE(capability)                                               \
  namespace capability {                                                       \
  void compute_stats(const StatsArgs& args, int64_t begin, int64_t end);       \
  void compute_gradient(const GradientArgs& args, int64_t begin, int64_t end); \
  }
BGKD_FOR_EACH_CAPABILITY(BGKD_DECLARE)
#undef BGKD_DECLARE

}  // namespace bgkd
