import numpy as np
def hand_articulation(v_template, weights, joints, JOINT):
    return {"hands_meanl": np.zeros(45,np.float32),"hands_meanr": np.zeros(45,np.float32),"hands_componentsl": np.eye(45,dtype=np.float32),"hands_componentsr": np.eye(45,dtype=np.float32)}
