// gpudedup._cpu.Stream.
#include "cpu/stream.h"

#include "python/binding.h"

namespace gpudedup {
namespace {

using namespace pybind11::literals;

StreamPlan::Verify parse_verify(const std::string& name) {
  if (name == "exact") return StreamPlan::Verify::exact;
  if (name == "signature") return StreamPlan::Verify::signature;
  require(name == "none", "verify must be exact, signature or none");
  return StreamPlan::Verify::none;
}

py::tuple decide_stream(Stream& stream, Array<uint32_t> lanes, Array<uint64_t> content, Array<uint64_t> unit_count,
                        Maybe<uint64_t> scope_keys, Maybe<int32_t> scopes, Maybe<int32_t> across,
                        Maybe<uint32_t> hashes, Maybe<int64_t> offsets, uint32_t lane_count) {
  auto count = static_cast<size_t>(unit_count.size());
  require(lanes.ndim() == 2 && lanes.shape(1) == lane_count && static_cast<size_t>(lanes.shape(0)) == count,
          "lanes must be uint32[n, num_perm]");
  require(content.ndim() == 2 && content.shape(1) == 2 && static_cast<size_t>(content.shape(0)) == count,
          "content must be uint64[n, 2]");
  require_size(scope_keys, count, "scope_keys must have one value a document");
  require_size(scopes, count, "scopes must have one value a document");
  require_size(across, count, "across must have one value a document");
  require_size(offsets, count + 1, "offsets must have one more value than documents");
  require(static_cast<bool>(hashes) == static_cast<bool>(offsets), "hashes and offsets go together");
  require(hashes || stream.plan().verify != StreamPlan::Verify::exact, "verify = exact needs hashes");
  require(stream.plan().lane_count == lane_count, "num_perm must be that of the stream");
  if (hashes) {
    for (size_t i = 0; i < count; ++i) require(offsets->data()[i] <= offsets->data()[i + 1], "offsets must ascend");
    require(offsets->data()[0] >= 0 && offsets->data()[count] <= hashes->size(), "offsets reach past the hashes");
  }
  StreamBatch batch{count,
                    lanes.data(),
                    content.data(),
                    unit_count.data(),
                    data_or_null(scope_keys),
                    data_or_null(scopes),
                    data_or_null(across),
                    data_or_null(hashes),
                    data_or_null(offsets)};
  StreamDecision decision;
  {
    py::gil_scoped_release nogil;
    Context context = make_context(1);
    decision = stream.decide(context, batch);
  }
  std::vector<uint64_t> part, whole;
  for (const Similarity& similarity : decision.similarity) {
    part.push_back(similarity.part);
    whole.push_back(similarity.whole);
  }
  return py::make_tuple(to_array(std::move(decision.keeper)), to_array(std::move(part)), to_array(std::move(whole)),
                        to_array(std::move(decision.exact)));
}

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream")
      .def(py::init([](uint32_t bands, uint32_t rows, uint32_t num_perm, uint64_t window, uint64_t threshold_ppm,
                       const std::string& verify, bool across, uint64_t memory_bytes, const std::string& directory) {
             require(static_cast<uint64_t>(bands) * rows <= num_perm, "bands * rows must be at most num_perm");
             require(window >= 1, "window must be at least 1");
             StreamPlan plan{bands, rows, num_perm, window, threshold_ppm, parse_verify(verify), across};
             return std::make_unique<Stream>(plan, memory_bytes, directory);
           }),
           py::kw_only(), "bands"_a, "rows"_a, "num_perm"_a, "window"_a, "threshold_ppm"_a, "verify"_a, "across"_a,
           "memory_bytes"_a, "directory"_a)
      .def("decide", decide_stream, py::kw_only(), "lanes"_a.noconvert(), "content"_a.noconvert(),
           "unit_count"_a.noconvert(), "scope_keys"_a = py::none(), "scopes"_a = py::none(), "across"_a = py::none(),
           "hashes"_a = py::none(), "offsets"_a = py::none(), "num_perm"_a)
      .def_property_readonly("documents", &Stream::documents)
      .def_property_readonly("compared", &Stream::compared)
      .def_property_readonly("set_bytes_in_memory", &Stream::set_bytes_in_memory)
      .def_property_readonly("set_bytes_on_disk", &Stream::set_bytes_on_disk);
}

}  // namespace gpudedup
